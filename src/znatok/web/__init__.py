"""``znatok web``: from a file of questions to a compared, exported model, in a browser."""
