"""Why a classifier answers as it does: the words that moved an output, and the training texts that are most alike."""
