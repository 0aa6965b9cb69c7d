"""A run over HTTP: the API, the store of added items, the web page."""
