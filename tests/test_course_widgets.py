"""Sliders that redraw a figure."""

import base64
import re

import ipywidgets
import matplotlib.pyplot as plt

from rgdm_lib.course import widgets


def test_the_picture_follows_the_slider_and_says_what_it_shows(monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, "display", shown.append)

    def draw(tau):
        fig, ax = plt.subplots(figsize=(1, 1))
        ax.plot([0, tau])
        ax.set_ylim(0, 5)
        return fig

    slider = ipywidgets.FloatSlider(value=1.0, min=0.0, max=4.0)
    widgets.explore(draw, tau=slider)
    picture = shown[0].children[-1]
    first = picture.value
    slider.value = 0.1 + 0.2  # 0.30000000000000004
    found = re.fullmatch(r'<img alt="([^"]*)" src="data:image/png;base64,([^"]*)">', picture.value)
    assert found[1] == "The figure for tau = 0.3" and picture.value != first
    assert base64.b64decode(found[2]).startswith(b"\x89PNG")
    assert slider.description == "tau" and not plt.get_fignums()
