"""The comparison: servers, scenes, and the presentation of results."""
