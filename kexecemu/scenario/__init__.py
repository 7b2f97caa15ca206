"""A TOML file in; a timeline and a verdict out."""
