"""What we learned, as tables, pictures and one HTML page."""
