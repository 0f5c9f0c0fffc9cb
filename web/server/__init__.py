"""The HTTP side of the dashboard: REST, live channel, pages. Everything it knows it asks of the mesh."""
