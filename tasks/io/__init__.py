"""Files, their locks and caches, downloads and archives; none of it is believed."""
