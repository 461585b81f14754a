"""What is computed: the cascade language, its IR, and the facts that follow from a cascade alone."""
