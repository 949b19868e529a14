"""What people look at: coloured tokens (`tokens`) and scores drawn on a picture (`overlay`)."""
