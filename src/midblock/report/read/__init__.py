"""What run folders hold, as the report sees it."""
