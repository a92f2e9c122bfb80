"""The language of responses: requests, whole replies and streams, read and written."""
