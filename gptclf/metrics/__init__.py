"""Arithmetic on results, with numpy alone.

Every measure is a function of a weight per row: equal weights give the measure, and the counts of a bootstrap resample
give it on that resample. B is the number of resamples, N of rows, C of classes.
"""
