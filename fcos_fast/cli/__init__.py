"""The command line: one file per subcommand. Options are parsed before torch is imported, which takes seconds."""
