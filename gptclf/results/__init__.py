"""What a model reached on a labelled data set: numbers with intervals, comparisons, tables, HTML and pictures."""
