"""Words that the other folders speak: messages, settings, errors, weights, metrics. Imports none of ours."""

if __name__ != "minillm_ray.common":
    # Under its bare name the folder finds only half of the package, and would make second classes.
    raise ImportError(
        "this folder belongs to the package minillm_ray, which a bare folder (a Ray working_dir, say) does"
        " not deliver: `pip install .` here or in the cluster's image, then use the command minillm"
        " or import minillm_ray.common"
    )
