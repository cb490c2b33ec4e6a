"""What gets written in pictures: words, letter strings and numbers, all upper case, 1 to 8 characters.

A tenth of all strings, chosen by their hash, is never trained on: `is_held_out`.
"""

from __future__ import annotations

import random
import zlib

COMMON = """
ABOUT ABOVE AIR ALARM APPLE APRIL ARM ART AUTUMN BABY BACK BAKERY BALL BANANA BANK BAR BASE BEACH BEAR BED BELL BIG BIKE
BIRD BLUE BOAT BOOK BOX BOY BREAD BRIDGE BUS BUTTER BYE CAFE CAKE CAMERA CAR CARD CASH CAT CAUTION CENTER CHAIR CHEESE
CHURCH CINEMA CITY CLEAN CLOCK CLOSED CLOUD COFFEE COLD COOK COPY CORN COW CUP DANGER DARK DAY DEER DELTA DESK DINER DOG
DOOR DOWN DRINK DRIVE DRY DUCK EAST EGG EIGHT EMPTY END ENTER ERROR EXIT EYE FALL FARM FAST FILM FIRE FISH FIVE FLOWER
FLY FOOD FOREST FOX FREE FRIDAY FROG FRUIT FULL GAME GARDEN GAS GATE GIRL GLASS GOAT GOLD GOOD GRASS GREEN GYM HAND HAPPY
HARBOR HAT HEART HELLO HELP HIGH HILL HOME HONEY HORSE HOSPITAL HOT HOTEL HOUSE HUNGRY ICE INFO INK ISLAND JAM JAZZ JOB
JUICE JULY JUMP JUNE KEY KING KITCHEN KITE LAKE LAMP LEAF LEFT LEMON LIBRARY LIGHT LION LOCK LONG LOVE LOW LUCKY LUNCH
MAIL MAP MARCH MARKET MAY MEAT METRO MILK MONDAY MONEY MOON MOUSE MOVIE MUSEUM MUSIC NAME NEW NEWS NIGHT NINE NO NOISE
NORTH OCEAN OFF OFFICE OIL OLD ON ONE OPEN ORANGE OWL PAGE PAPER PARK PARKING PEACE PEN PHONE PHOTO PIANO PIG PILOT PINK
PIZZA PLANE PLAY PLEASE POLICE POOL POST PRICE PULL PUSH QUEEN QUICK QUIET QUIZ RADIO RAIN RED RENT RICE RIGHT RING RIVER
ROAD ROBOT ROCK ROOM ROSE RUN SAFE SALAD SALE SALT SAND SCHOOL SEA SEVEN SHEEP SHIP SHOES SHOP SIGN SILVER SIX SKY SLOW
SNOW SOAP SODA SONG SOUP SOUTH SPORT SPRING STAR START STOP STORE SUGAR SUMMER SUN SUNDAY TABLE TAXI TEA TEN TENNIS TEST
THANKS THEATER TICKET TIGER TIME TODAY TOILET TOWER TOWN TRAIN TREE TUESDAY TURTLE TWO UNDER UNIT UP VALLEY VIDEO VIOLIN
VISIT WAIT WALK WARM WATER WAX WEEK WELCOME WEST WHALE WHITE WIND WINDOW WINE WINTER WOLF WOOD WORLD YEAR YELLOW YES ZEBRA
ZERO ZONE ZOO
""".split()

VOWELS = "AAAEEEEIIOOOUUY"
CONSONANTS = "BBCCDDFFGGHHJKKLLLMMNNNPPQRRRSSSTTTTVVWWXZ"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_CHARS = 8


def is_held_out(text: str) -> bool:
    """Whether training never sees this string."""
    return zlib.crc32(text.encode()) % 10 == 0


def syllables(rng: random.Random) -> str:
    """A string that can be spoken, of 2 to 8 letters."""
    text, vowel = "", rng.random() < 0.3
    for _ in range(rng.randint(2, MAX_CHARS)):
        text += rng.choice(VOWELS if vowel else CONSONANTS)
        vowel = not vowel if rng.random() < 0.85 else vowel
    return text


def propose(rng: random.Random) -> str:
    """Numbers, common words, invented words and plain letter strings."""
    kind = rng.random()
    if kind < 0.25:
        return str(rng.randrange(10 ** rng.randint(1, 5)))
    if kind < 0.5:
        return rng.choice(COMMON)
    if kind < 0.75:
        return syllables(rng)
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, MAX_CHARS)))


def draw(rng: random.Random, held_out: bool) -> str:
    """A string to write, from the trained ones or from the held-out ones. One letter alone is never held out."""
    while True:
        text = propose(rng)
        if len(text) < 2 and not text.isdigit():
            continue
        if is_held_out(text) == held_out:
            return text
