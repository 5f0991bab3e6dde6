__version__ = "0.2.0"

import os

# Threads of torch that wait for one another spin only briefly: beside another busy process they would spin for most of the time (an analysis took
# 33 s, and takes 10 s so; alone it takes 7.5 s either way). It counts where nanoshape is imported before torch; a value that is already set stays.
os.environ.setdefault('GOMP_SPINCOUNT', '1000')
