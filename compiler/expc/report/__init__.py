"""`expc report`: an experiment as one HTML file, made of the state files alone.

`gather` reads what a plan and the runs' folders say, `figures` and `curves` reduce it, `svg` draws, `page` lays it out for
the template. No torch, no network; a folder may lack any file.
"""
