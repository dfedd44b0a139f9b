"""Text games (ALFWorld, through TextWorld), each played in a worker process.

``pool`` is what the rest of the program uses; ``worker`` is the program that runs in the processes, and ``engine``, the
only module that imports alfworld and textworld, is loaded there and nowhere else.
"""
