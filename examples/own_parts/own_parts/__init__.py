"""A core, a head, a tokenizer and a measure for lmbench, each one Python and one YAML file."""
