"""What `make docs` makes of the sources: pictures, tables of measurements, the reference."""
