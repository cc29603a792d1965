"""Where the method runs and on how many machines: Ray Data, Ray Train and the order of the stages."""
