"""Multiple-choice, cloze and generation tasks from local files, through EleutherAI's lm-eval (the extra ``eval``).

`run.run_tasks` reads task files in lm-eval's YAML form (`task_files`), lets lm-eval build prompts and metrics, and
answers its requests with our model (`model`). Nothing here goes to a hub or a network.
"""
