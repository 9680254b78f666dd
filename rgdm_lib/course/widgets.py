"""Sliders that redraw a figure.

``ipywidgets.interact`` draws inside an Output widget, whose state nbclient sends back to the kernel
while it waits for the kernel's reply. Now and then it then misses the reply, and a headless run
waits for ever. A picture that is set from outside needs none of that, and does not flicker.
"""

import base64
import html
import io
from collections.abc import Callable

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import display


def explore(draw: Callable[..., "plt.Figure"], **sliders: ipywidgets.Widget) -> None:
    """Show sliders above the figure ``draw(**values)``, redrawn when one of them moves.

    ``sliders`` maps the arguments of ``draw`` to widgets that have a value; an argument's name is
    its slider's label unless it has one. ``draw`` returns a figure, which is closed here.
    """
    picture = ipywidgets.HTML()

    def redraw(_change: object = None) -> None:
        values = {name: slider.value for name, slider in sliders.items()}
        figure = draw(**values)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        plt.close(figure)
        shown = (
            f"{name} = {format(v, '.4g') if isinstance(v, float) else v}"
            for name, v in values.items()
        )
        alt = "The figure for " + ", ".join(shown)
        data = base64.b64encode(buffer.getvalue()).decode()
        picture.value = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'

    for name, slider in sliders.items():
        slider.description = slider.description or name
        slider.observe(redraw, names="value")
    redraw()
    left = ipywidgets.Layout(align_items="flex-start")  # a stretched picture would be blurred
    display(ipywidgets.VBox([*sliders.values(), picture], layout=left))
