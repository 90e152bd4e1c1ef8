"""Search and clustering with FAISS."""
