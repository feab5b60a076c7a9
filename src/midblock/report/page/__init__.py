"""What every page is made of: shell, charts, tiles, tables."""
