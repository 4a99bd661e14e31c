"""What a layout costs before it is run: what each rank holds and sends, and how long a step may take."""
