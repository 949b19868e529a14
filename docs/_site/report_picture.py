"""The picture of a report in the README and in docs/reports.md; needs Chromium and the extra `browser`.

grains-ref demo --vision --seeds 0 --out demo_vision_out
python docs/_site/report_picture.py demo_vision_out/report.html docs/img/report.webp
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

SIZE = {"width": 1180, "height": 800}


def main(report: Path, picture: Path) -> None:
    """Open the report, point at the word that misleads, take its picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(report.resolve().as_uri())
        page.locator(".example[data-drawn=done]").first.wait_for()
        page.evaluate("document.querySelector('.example').scrollIntoView()")
        page.wait_for_timeout(1000)  # scrolling is smooth
        page.locator(".tokens .chip", has_text="typically").first.hover()
        content = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(content)).save(picture, quality=82, method=6)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
