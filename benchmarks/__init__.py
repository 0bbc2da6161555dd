"""Benchmarks of pyconv beside the other CPU convolution libraries: ``python -m benchmarks --help`` in the top folder.

Data flow: ``layers`` (what is computed) -> ``measure`` (whose turn it is) -> ``workers`` (one process per library) ->
``libraries`` (how each library is called) and ``timing`` -> rows -> ``results`` -> ``report`` and ``chart``.
``family`` and ``family_libraries`` take the places of ``layers`` and ``libraries`` for the second table, ``--family``.
A new library is one class in ``libraries.py``; a new call is one line in ``family.py``.
"""
