"""What each verb's runs bring to a page."""
