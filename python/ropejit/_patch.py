def patch(*a): raise NotImplementedError
patched = unpatch = patch
