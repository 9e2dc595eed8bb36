"""From Python: any module, images and labels to a report; attacks as people name them; what a verdict rests on."""
