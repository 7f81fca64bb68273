"""What a build looked like: HTML, Markdown and figures."""
