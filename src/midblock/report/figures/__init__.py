"""The page's figures for papers."""
