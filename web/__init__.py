"""The dashboard and the REST API: an AMP client with pages. It knows no agent and no storage."""
