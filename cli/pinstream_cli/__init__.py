"""The pinstream command line."""
