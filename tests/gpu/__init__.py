"""What a GPU gives, measured on one: `make gpu PART=a…l`, each part at most four minutes.

python -m tests.gpu PART [SECTION …] [--tiny] [--out FOLDER]

Each section runs in a process of its own, under a time limit, and survives the others' failure; its rows are written as they come,
to FOLDER/gpu/SECTION.json and FOLDER/gpu.md. It runs from the source tree; what is missing is stated first, and a section that needs it
is a row "not run". With `--tiny` the very same sections run on the processor, on tiny sizes.
"""
