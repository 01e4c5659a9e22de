"""A human study: which of two images is the real one? `store` keeps it, `create` draws pairs, `server` asks, `report` counts."""
