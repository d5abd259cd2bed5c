"""Paired timings against stock nnU-Net, with a check that both give the same.

side          a program in a process of its own that does a task when asked, and its memory
nnunet_side   the rival: what nnU-Net v2 does, run by the Python of its own environment
rival_plans   its plans.json of a plan of ours
our_side      this project, asked in the same way
pairs         A B A B ..., medians, tables
inputs        cases of the quiz's sizes, and its plan
inference     from files to masks
data          preprocessing, and patches for training
train         a step of training; time and memory against the number of cases
"""
