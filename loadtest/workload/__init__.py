"""What is asked: scenarios, and the requests that they make of a bundle and its users."""
