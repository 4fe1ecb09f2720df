//! Benchmarks of kvd and of what it is compared with.
