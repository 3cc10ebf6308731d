"""The networks of the paper (Xu et al., "RANP", 3DV 2020), written as a user of the package would write them."""
