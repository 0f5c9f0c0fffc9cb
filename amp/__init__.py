"""The Agent Mesh Protocol and its mesh. It knows nothing of workflows: any project could use it."""
