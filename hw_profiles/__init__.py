"""Data only: one YAML file per GPU or spatial array; `architectures/` holds what devices of one generation share."""
