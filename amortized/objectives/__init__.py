"""What is bounded: functions of log-weights that know neither sites nor Pyro."""
