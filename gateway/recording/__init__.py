"""Record: an exchange becomes the billing span."""
