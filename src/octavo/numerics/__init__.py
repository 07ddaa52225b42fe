"""What an integer means: types, schemes, affine maths, the ``octavo::`` operators, observers."""
