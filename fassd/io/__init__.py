"""Pictures, videos, folders and text files: reading, writing and finding them."""
