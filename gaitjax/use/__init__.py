"""From a video to walks: the person model, frames, tracks, records.

video.frames_of -> tracks.sequences (person.find, regions.Regions) -> cut.main
"""
