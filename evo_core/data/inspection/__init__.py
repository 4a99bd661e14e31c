"""What is in token files: `find` them, count (`statistics`), read one as text (`sample`), check all (`verify`)."""
