"""What connects the runtime to a server: any session object, or one of the SDK lines."""
