"""The server of the live page: reads runs, and answers in JSON; needs `pip install 'levada[serve]'`."""
