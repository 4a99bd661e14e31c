"""What a layout costs before it is run: what a rank holds and sends, the time of a step, the layouts worth having."""
